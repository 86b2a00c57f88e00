"""A server that sends the parameters in one piece, as most systems do. Run as a process."""

from lockstep_server import main, update

update.CHUNK_BYTES = 32 << 20  # above the networks that it is used for, below what a message may have

if __name__ == "__main__":
    main.main()
