"""Questions of our own, as data files."""
