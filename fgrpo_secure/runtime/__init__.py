"""Transport: how a phase's bytes reach the clients and come back."""
