"""What several impls share. Nothing here is an impl."""
