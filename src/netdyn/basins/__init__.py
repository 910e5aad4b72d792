"""How much noise it takes until a network is wrong."""
