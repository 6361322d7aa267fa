// Package node holds a kubelet to what its node needs: its own Node and Lease,
// the pods bound to it, and of Secrets, ConfigMaps and claims only those that
// these pods name (the Node authorizer of Kubernetes).
//
// Its one idea is an index over the pod cache: from (node, resource, namespace,
// name) to the pods that justify the access. A decision is one look-up; a pod
// that goes takes its node's access with it.
//
// A request runs: is the user a kubelet (Name)? → is the object one that must be
// justified (Secret, ConfigMap, claim, token, Pod)? then the index decides → all
// else is decided by the rules of the ClusterRole system:node. What a kubelet may
// write into an object that it may name is the NodeRestriction admission plugin's
// business, because only there the object is seen.
package node
