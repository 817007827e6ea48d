"""What runs on the hosts under the gate: the agent, and the programs that it starts there."""
