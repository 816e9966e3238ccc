"""The two sockets of the node: who may speak, and what each message must be."""
