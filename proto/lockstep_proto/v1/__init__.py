"""Generated code of the contract; scripts/generate-proto makes it."""
