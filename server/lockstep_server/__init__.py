"""The server of Lockstep: jobs, the training state machine, reduction, optimizers, checkpoints, gRPC, metrics."""
