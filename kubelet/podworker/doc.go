// Package podworker runs the pods of this node through CRI.
//
// Each pod has a worker, a goroutine that is woken by whatever concerns the pod:
// a change of its object, of its containers, of a probe's result or of an object
// it mounts, or the end of a pause. Woken, it looks at what the runtime has,
// decides (a pure function) what to do next, does it, and writes the status. A
// worker that starts anew finds all that it needs in the runtime and the API, so
// that a restart of the kubelet restarts no container.
package podworker
