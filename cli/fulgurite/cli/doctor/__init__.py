"""What `fulgurite doctor` looks at: one file per thing, each returns findings."""
