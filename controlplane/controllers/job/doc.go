// Package job runs pods until as many of them as a Job asks for have succeeded.
//
// A pod carries a finalizer until its end has been counted in the Job's status,
// so that no success and no failure is lost or counted twice (KEP-2307): its UID
// is first written to status.uncountedTerminatedPods, then the finalizer goes,
// then the UID moves into the sums.
//
// Data goes through in three steps: count turns the Job's pods into a tally,
// decide turns Job and tally into a decision (both pure), and act carries it out.
package job
