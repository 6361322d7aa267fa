// Package garbage deletes objects whose owners are gone, and carries out the
// propagation policies of deletes: background, foreground and orphan.
//
// Informers of all deletable resources, metadata only, keep a graph of owners
// and dependents. A worker looks at one object at a time and judges its owners
// by the graph. The graph may lag: before anything is deleted, the object is read
// again, owners that the graph does not know are asked for by name, and the delete
// holds only for the version that was judged. So a lagging cache costs a request,
// never a live object.
package garbage
