// Package store knows prices.
package store

import "fmt"

// Item is something that has a price.
type Item struct {
	Name  string
	Cents int
}

// Total is the price of all items.
func Total(items []Item) string {
	sum := 0
	for _, i := range items {
		sum += i.Cents
	}
	return fmt.Sprintf("%d.%02d", sum/100, sum%100)
}

// Cheapest is the item that costs least.
func Cheapest(items []Item) Item {
	best := items[0]
	for _, i := range items {
		if i.Cents < best.Cents {
			best = i
		}
	}
	return best
}
