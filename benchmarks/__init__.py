"""What is timed: side by side with a peer, in one run, as a ratio."""

import robustkit as robustkit  # before torch: it sets how torch's threads wait
