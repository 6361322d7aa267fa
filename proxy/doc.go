// Package proxy turns Services and EndpointSlices into load-balancer rows.
//
//	mirror -> queue of Service keys -> Desired (pure) -> Table.Replace(Service UID, rows)
//
// A change costs what the Service that changed costs: its slices are found by an index. Before the first pass, rows of
// Services that are gone are pruned; a Service whose rows could not be written is tried again until they are.
package proxy
