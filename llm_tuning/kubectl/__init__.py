"""The kubectl plugin: `kubectl tuning submit | watch | logs | plan | explain | report | api-key`."""
