"""What metarun costs, measured beside what a user would otherwise use. See NOTES.md for the method."""
