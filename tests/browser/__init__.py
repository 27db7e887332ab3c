"""The page of ``minivit inspect`` in a real browser. Run with: make browser."""
