"""AgentLab: unattended coding agents in throwaway, network-isolated virtual machines."""

VERSION = "0.1.0"
