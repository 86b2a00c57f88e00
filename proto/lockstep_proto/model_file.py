"""What the safetensors files of models and checkpoints have in common."""

import json


def sorted_header(content: bytes) -> tuple[bytes, memoryview]:
    """Return a safetensors file as (header, tensors), the header in sorted order.

    The library writes metadata in an order that varies from process to process; so equal models make equal files.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header, memoryview(content)[end:]
