"""Small runs that an earlier release made, and how they are made."""
