"""Level 6: bridges to other libraries' ways."""
