"""A whole cluster in one thread, with every fault at every point: one seed, one heap of events, virtual time.

What runs is the product: the server's controller with SQLite and files, the workers' session and engine, the fleet,
the client's rules. Only what carries them is pretended: the loop (`loop`), the network and gRPC on it (`network`,
`rpc`), the disk (`disk`), and the drivers of processes (`server`, `worker`, `fleet`, `client`). `faults` are drawn
from the seed, `checks` say what must be true afterwards, `shrink` tells the story of a run that fails.
"""
