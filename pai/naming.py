"""Folder names made from overrides."""

import hashlib

_LONGEST = 180


def folder_name(overrides: str) -> str:
    """Return ``overrides`` (``a=1,b=2``) as one folder name: no slashes, bounded length, unique."""
    name = overrides.replace("/", "_").replace("\\", "_") or "default"
    if len(name.encode()) <= _LONGEST and name == overrides:
        return name
    digest = hashlib.sha256(overrides.encode()).hexdigest()[:8]
    short = name.encode()[:_LONGEST].decode(errors="ignore")
    return f"{short}-{digest}" if overrides else name
