"""DESCRIBES one kind of engine each: argv, environment, endpoints, how to read progress and failures. No I/O."""
