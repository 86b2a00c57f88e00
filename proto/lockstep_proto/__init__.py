"""The contract of Lockstep: messages, the rules of a JobSpec, the flat layout, the reduction tree, the chunk codec."""
