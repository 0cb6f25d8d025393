"""Output directories of stages: written atomically, signed by a manifest, verified, resumed, reused.."""
