"""The switchboard: agents in, a store behind, viewers out."""
