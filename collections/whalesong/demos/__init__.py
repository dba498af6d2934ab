"""The demos: a whole product from nothing to a report, stage by stage, on the CPU and offline."""
