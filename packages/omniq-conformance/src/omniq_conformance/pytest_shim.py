"""The pytest plugin of the suite: it will collect its groups, enforce its rules and write its report."""
