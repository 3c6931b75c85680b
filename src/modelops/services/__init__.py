"""Services: ports that clients call."""
