"""One program for everything: `fulgurite COMMAND`. Parts are imported when their command runs."""
