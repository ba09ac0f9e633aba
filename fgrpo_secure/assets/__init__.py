"""The embedded default: a tiny base model, four tasks, and how both were made."""
