"""How a program talks to a policy: nouns, wire codec, clients, chunk player, adapters. No torch."""
