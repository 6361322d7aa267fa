// Package descriptor is the form in which the API server's built-in resources
// are written down, and the machine that turns such a form into a REST storage.
//
// Its one idea: a Resource value is all that there is to know of a resource.
// Package resources holds one for each; Build makes of it the generic registry
// store with its strategies, its subresources and its table columns. The Go
// types are the published ones of k8s.io/api; they are registered as their
// group's internal version too, so that there is no second copy of an API type.
package descriptor
