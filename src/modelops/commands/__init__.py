"""The command line for people, one file a command. It calls services and adapters, and nothing calls it but `cli`."""
