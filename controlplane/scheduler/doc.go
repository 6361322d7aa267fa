// Package scheduler binds pods to nodes.
//
// Its plugins are those of the published scheduling framework
// (k8s.io/kube-scheduler/framework), so that plugins written for it fit; the
// default ones are in the folder plugins and use nothing but that framework.
//
// Data goes through like this:
//
//	informers → cache (nodes, and what runs or is about to run on them) → snapshot, one per cycle
//	informers → queue (pods to place: active, in their pause, waiting for a change)
//	cycle: pod of the queue + snapshot → PreFilter, Filter, Score → a node → Reserve, Permit
//	binding, beside the next cycle: PreBind, Bind, PostBind
//
// A decision counts in the cache at once, without waiting for the API server or
// the watch. A pod that fits nowhere waits until an event comes that a plugin
// which rejected it has registered for, and in any case not longer than five minutes.
package scheduler
