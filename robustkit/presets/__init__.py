"""The experiments that ship, one TOML file each."""
