// What marks the things of this test run: its cgroups are below one parent.
export const cgroupParent = `/stasis-e2e-${process.pid}`;
