"""The privacy kernel: everything that a guarantee of this project rests on.

It knows nothing of language models, transport or configuration files, and imports
no learning library. Start reading at `contribution`, the only door through which a
client's data can leave, then `plan`, `codec`, `noise` and `secagg`.
"""
