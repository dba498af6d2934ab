"""Plain torch building blocks. They know no trainer, no configuration file and no data set."""
