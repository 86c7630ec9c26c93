"""What the way from an agent to a viewer costs and keeps, against its targets and beside peers."""
