"""What the duplex families share: two channels in time, the loop over frames, sessions."""
