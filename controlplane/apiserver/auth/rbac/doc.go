// Package rbac decides requests by the Roles and bindings of
// rbac.authorization.k8s.io, and keeps the default ones in place.
//
// Its one idea is visit: a walk over all rules that a user's bindings grant in a
// namespace. Authorize stops it at the first rule that matches, RulesFor writes it
// down, ConfirmNoEscalation compares it with what somebody wants to grant.
//
// Files: authorizer.go decides requests, escalation.go writes of RBAC objects,
// defaults.go says which roles and bindings every cluster has, controllers.go those of
// the reference's controllers, strake.go those that only Strake has, reconcile.go puts
// them in place and keeps aggregated ClusterRoles the sum of their parts.
package rbac
