"""Others on the same networks and cores, in an environment of their own: see `run`. No part of Lockstep needs them."""
