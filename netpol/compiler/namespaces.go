package compiler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// namespace is a Namespace, or the name of one whose object was not seen.
type namespace struct {
	name     string
	known    bool
	labels   labelSet
	keep     keep
	kinds    map[*kind]struct{}
	policies map[*policy]struct{} // NetworkPolicies in it
	blocks   int                  // that they name
}

func (c *Compiler) namespace(name string) *namespace {
	n := c.namespaces[name]
	if n == nil {
		n = &namespace{name: word(name), kinds: map[*kind]struct{}{}, policies: map[*policy]struct{}{}}
		n.labels = labelSet{{corev1.LabelMetadataName, n.name}}
		c.namespaces[n.name] = n
	}
	return n
}

// forgetNamespace lets a namespace go that nothing is in.
func (c *Compiler) forgetNamespace(n *namespace) {
	if !n.known && len(n.kinds) == 0 && len(n.policies) == 0 {
		delete(c.namespaces, n.name)
	}
}

// SetNamespace takes a Namespace that is new or has changed.
func (c *Compiler) SetNamespace(o *corev1.Namespace) {
	c.changeNamespace(o.Name, namespaceChange{true, words(o.Labels).with(corev1.LabelMetadataName, word(o.Name)), keepOf(o.Annotations)})
}

// DeleteNamespace takes the end of a Namespace.
func (c *Compiler) DeleteNamespace(name string) {
	if c.namespaces[name] != nil || c.changedNamespaces[name] != nil {
		c.changeNamespace(name, namespaceChange{false, labelSet{{corev1.LabelMetadataName, word(name)}}, keepUnsaid})
	}
}

type namespaceChange struct {
	known  bool
	labels labelSet
	keep   keep
}

func (c *Compiler) changeNamespace(name string, change namespaceChange) {
	if n := c.namespaces[name]; n == nil || len(n.kinds) == 0 { // nobody is judged otherwise by it
		delete(c.changedNamespaces, name)
		n = c.namespace(name)
		n.known, n.labels, n.keep = change.known, change.labels, change.keep
		c.forgetNamespace(n)
		return
	}
	c.changedNamespaces[word(name)] = &change
}

// applyNamespaces makes the changes of namespaces count.
func (c *Compiler) applyNamespaces() {
	for name, change := range c.changedNamespaces {
		n := c.namespace(name)
		relabelled := n.known != change.known || !slices.Equal(n.labels, change.labels)
		if relabelled || n.keep != change.keep {
			for k := range n.kinds {
				c.dirtySubjects(k)
				if relabelled {
					c.dirtyKinds[k] = struct{}{}
					c.relabelled[k] = struct{}{}
				}
			}
		}
		n.known, n.labels, n.keep = change.known, change.labels, change.keep
		c.forgetNamespace(n)
	}
	clear(c.changedNamespaces)
}
