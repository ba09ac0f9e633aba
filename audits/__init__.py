"""Evidence: executable attacks on our own claims.

They import the kernel and the application; nothing imports them but the command line,
and that only when asked.
"""
