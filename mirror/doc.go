// Package mirror holds what the API server has of Services, EndpointSlices, namespaces and pods: once in a process, for all who make rows or
// answers of them, by one watch of each kind.
//
//	list, watch -> Set: packed objects, found by key, by Service, by address -> followers are told of each difference
//
// Objects are bytes, without what nobody here asks for. As Go's objects in an informer's cache, 50 000 Services with five endpoints each take six
// hundred MB; so they take thirty. Who asks for one gets a copy, which is cheap for one and dear for all of them: so what a change costs should follow
// from the change.
package mirror
