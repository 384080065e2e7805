"""Types that other packages share: desired and observed state, records. Imports no sibling."""
