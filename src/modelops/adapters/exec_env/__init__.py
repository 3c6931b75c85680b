"""Execution environments: the `ExecutionEnvironment` port on the sandboxed runner, warm and cold."""
