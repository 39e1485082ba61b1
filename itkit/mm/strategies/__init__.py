"""Ways to spread a training over processes: wrappers and strategies chosen by the single value `parallel`."""
