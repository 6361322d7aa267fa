// Package proxy turns Services and EndpointSlices into load-balancer rows.
//
//	informers -> Desired (pure) -> Table.Replace(Service UID, rows)
//
// A change costs what the Service that changed costs. After the first full pass, rows of Services that are gone are
// pruned; a Service whose rows could not be written is tried again until they are.
package proxy
