"""The admin API of the daemon on its unix socket, and the client that the command line uses."""
